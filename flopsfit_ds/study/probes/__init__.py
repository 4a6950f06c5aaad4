"""What is looked at of a class, its loss and its data before anything is planned."""
