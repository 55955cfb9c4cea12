"""What arXiv:2010.09278 says of MimicNorm, tried on digits and CIFAR-10."""
