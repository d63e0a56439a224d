"""What leaves a study: configurations as YAML, as HF `peft` folders, and study files; and back."""
