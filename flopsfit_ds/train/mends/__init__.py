"""What is mended of the installed DeepSpeed, for this project's runs alone."""
