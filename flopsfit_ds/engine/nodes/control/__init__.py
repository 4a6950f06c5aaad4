"""How the driver and the other nodes of a launch find each other and talk."""
