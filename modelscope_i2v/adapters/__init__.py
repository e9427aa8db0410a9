"""LoRA: small files that change what a U-Net makes. Trained with PEFT, applied without it."""
