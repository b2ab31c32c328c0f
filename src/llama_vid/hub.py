"""Publishing checkpoints and adapters on the Hub, so that they load for a stranger and say truthfully what they are."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from .hub_card import is_written_by_hand
from .hub_files import CARD
from .hub_provenance import versions
from .hub_repository import ADAPTER, ask_as_a_stranger, repository

logger = logging.getLogger(__name__)

# Of an earlier commit, what would mislead whoever loads the repository if the new one does not have it.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER)
REPLACED += ("*_llama_vid*.py",)
# transformers lets most of these win over what is in tokenizer.json, tokenizer_config.json and chat_template.jinja.
REPLACED += ("special_tokens_map.json", "added_tokens.json", "tokenizer*", "vocab.*", "merges.txt", "*.model")
REPLACED += ("chat_template*", "additional_chat_templates/*", "qformer_tokenizer/*")
REPLACED += ("provenance.json", "evaluation.json", "about.json", "loss_curve.*")  # what a card is written from


@dataclass
class Publication:
    """
    What was published, or would be.

    Args:
        repo_id (`str`): Where.
        files (`dict[str, int]`): Its files with their sizes in bytes.
        left_out (`list[str]`): Files of the folder that are a training's and no part of the model.
        answer (`str`): What the model said when it was loaded from the folder and asked about two frames of noise.
        url (`str`, *optional*): Of the commit or the pull request; `None` for a dry run.
        is_new (`bool`): Whether there was anything to commit.
    """

    repo_id: str
    files: dict[str, int]
    left_out: list[str]
    answer: str
    url: str | None = None
    is_new: bool = False

    def __str__(self) -> str:
        lines = [f"{size:>16,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>16,}  bytes in {len(self.files)} files for {self.repo_id}")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        if self.url is None:
            lines.append(f"nothing was uploaded; the card is in {CARD}")
        else:
            lines.append(self.url if self.is_new else f"nothing has changed since {self.url}")
        return "\n".join(lines)


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    merge: bool = False,
    license: str | None = None,
    datasets: Sequence[str] | None = None,
    dry_run: bool = False,
    token: str | None = None,
    create_pr: bool = False,
) -> Publication:
    """
    Put a checkpoint or a LoRA adapter on the Hub, in one commit: weights, configuration, processor, remote code and a
    model card, which is also written to `README.md` of the folder (a card that was changed by hand is kept, there as on
    the Hub; a trainer's draft becomes `README.md.orig`).

    First it is loaded and asked in a process of its own, with `trust_remote_code` and without this package. Only
    safetensors, JSON, texts, templates, images and this package's remote code go up, and nothing in them may be secret
    or personal, and no value in JSON or YAML a path of this machine. If the connection ends, call it again: weights
    that have arrived are not sent again. Where nothing has changed, there is no commit.

    Args:
        folder (`str` or `Path`):
            A checkpoint; an adapter of PEFT; or trained modules alone (`save_only_trained`), which are published with
            the rest of their model. Figures on the card come from `provenance.json`, `loss_curve.json` and
            `evaluation.json` in it, what its makers say from `about.json` (see `llama_vid.hub_card`).
        repo_id (`str`): `owner/name`; the repository is made if it does not exist.
        private (`bool`, *optional*): Whether a repository that is made is private; by default as its owner has set it.
        revision (`str`, *optional*): A branch, which is made if it does not exist; `main` by default.
        merge (`bool`, *optional*, defaults to `False`): Publish an adapter and its base as one model.
        license (`str`, *optional*): The Hub's name of a licence. Weights of released checkpoints keep theirs.
        datasets (`Sequence[str]`, *optional*): Hub ids of what it was trained on.
        dry_run (`bool`, *optional*, defaults to `False`): Check everything and write the card, but upload nothing.
        token (`str`, *optional*): By default that of `hf auth login` or `HF_TOKEN`.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing.

    Returns:
        [`Publication`].

    Raises:
        FileNotFoundError: if there is no such folder.
        PermissionError: no token, one that the Hub does not know, or one that may not write there.
        ConnectionError: if the Hub cannot be reached or the connection ended. There is one commit or none.
        ValueError: if the folder is no checkpoint, holds what must not go up, or does not load; if the repository is of
            another type; if an argument makes no sense.
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"`repo_id={repo_id!r}` names no owner: pass `owner/name`.")
    if not dry_run:
        _api(token)  # before anything that takes long
    token = token or get_token()
    with repository(folder, repo_id, merge=merge, license=license, datasets=datasets, token=token) as found:
        answer = ask_as_a_stranger(found.files, token)
        sizes = {name: path.stat().st_size for name, path in found.files.items()}
        publication = Publication(repo_id, sizes, found.left_out, answer)
        if not dry_run:
            message = f"Upload {'adapter' if ADAPTER in found.files else 'model'} with llama-vid"
            publication.url, publication.is_new = upload(
                found.files, repo_id, message, token=token, private=private, revision=revision, create_pr=create_pr
            )
    return publication


def upload(
    files: Mapping[str, Path],
    repo_id: str,
    message: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[str, bool]:
    """
    Commit files to a repository, which is made if it does not exist. Weights, code, tokenizer files and templates of an
    earlier commit that the new one does not have are deleted in it. A card that somebody wrote on the Hub is kept,
    unless the one in `files` was written by hand too.

    Args:
        files (`Mapping[str, Path]`): Files by their path in the repository.
        repo_id (`str`): `owner/name`.
        message (`str`): Of the commit.
        token, private, revision, create_pr: As for [`publish`].

    Returns:
        `tuple[str, bool]`: The URL of the commit or pull request, and whether anything had changed.

    Raises:
        PermissionError, ConnectionError, ValueError: as [`publish`].
    """
    api = _api(token)
    with _explained(repo_id, revision):
        repo_id = open_repository(repo_id, token=token, private=private, revision=None if create_pr else revision)
        head = api.model_info(repo_id, revision=revision)
        there = [file.rfilename for file in head.siblings]
        if CARD in there and CARD in files:
            card = Path(api.hf_hub_download(repo_id, CARD, revision=head.sha))
            files = _without_a_kept_card(files, card.read_text(encoding="utf-8"), repo_id)
        # Not upload_folder, which may make several commits. What has arrived in an interrupted one is not sent again.
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in there if _is_replaced(name) and name not in files),
            ],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url, commit.oid != head.sha


def _is_replaced(name: str) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in REPLACED)


def _without_a_kept_card(files: Mapping[str, Path], card_there: str, repo_id: str) -> Mapping[str, Path]:
    """The same files, but no card where ours would take the place of what somebody wrote on the Hub."""
    card = files[CARD].read_text(encoding="utf-8")
    if is_written_by_hand(card) or not is_written_by_hand(card_there):
        return files
    ours, theirs = (ModelCard(text, ignore_metadata_errors=True) for text in (card, card_there))
    if theirs.text.strip():
        logger.warning(
            "The %s of %s was written by hand on the Hub and is kept: to have it replaced, delete it there and publish "
            "again.",
            CARD,
            repo_id,
        )
        return {name: path for name, path in files.items() if name != CARD}
    # The website makes such a card, when somebody chooses a licence for a new repository.
    if theirs.data.license not in (None, ours.data.license):
        logger.warning(
            "The %s of %s named the licence %s; the one that takes its place names %s.",
            CARD,
            repo_id,
            theirs.data.license,
            ours.data.license or "none",
        )
    return files


def open_repository(
    repo_id: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """
    Make a repository, and a branch of it, unless they exist. Arguments and errors are those of [`publish`]; a
    `repo_id` without an owner is the token's.

    Returns:
        `str`: `owner/name`.
    """
    api = _api(token)
    with _explained(repo_id, revision):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if url.repo_type != "model":
            raise ValueError(f"`{repo_id}` is a {url.repo_type} on the Hub and no model: choose another repo_id.")
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
    return url.repo_id


def _api(token: str | None) -> HfApi:
    if (token or get_token()) is None:
        raise PermissionError("There is no token for the Hub: run `hf auth login`, set HF_TOKEN, or pass token.")
    return HfApi(token=token, library_name="llama-vid", library_version=versions("llama-vid")["llama-vid"])


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Errors of the Hub and of the way to it as what they mean, and what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id, revision) from error
    # The second is around what happened in a thread, the third around what happened to a download.
    except (httpx.TransportError, RuntimeError, LocalEntryNotFoundError) as error:
        cause = type(error.__cause__ or error).__name__
        raise ConnectionError(
            f"The connection to the Hub failed ({cause}) before a commit to {repo_id} was confirmed. Publish again: "
            "weights that have arrived are not sent again."
        ) from error


def _refusal(error: HfHubHTTPError, repo_id: str, revision: str | None) -> OSError:
    """What the Hub's refusal means, and what to do."""
    status = error.response.status_code
    if status == 401:
        return PermissionError(f"The Hub does not know this token (401): log in again (`hf auth login`) for {repo_id}.")
    if status == 403:
        return PermissionError(
            f"This token may not write to {repo_id} (403): use one with write permission for "
            f"`{repo_id.partition('/')[0]}`, or create_pr to propose the change."
        )
    if status == 404 and revision is not None:
        return FileNotFoundError(f"{repo_id} has no revision `{revision}`: pass a branch.")
    return ConnectionError(f"The Hub refused the upload to {repo_id} ({status}): {error.server_message or error}")
