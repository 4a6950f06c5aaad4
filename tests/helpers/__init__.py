"""What tests share: small specs, toys, planted records, processes to be killed. Tests import it as `helpers`."""
