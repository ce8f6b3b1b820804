"""Students for other programs: as timm's folder with a model card, as graphs (ONNX, torch.export), on the Hugging Face hub."""
