"""psBN and MimicNorm on a GPU, with torch and torchvision alone."""
