"""Training in three stages with TRL and PEFT."""
