"""Work for more than one process or machine: blocks of images, done by one process or by the actors of Ray."""
