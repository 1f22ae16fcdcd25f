"""Networks that neither torchvision nor timm has, one family a file."""
