"""What the working folder holds and what is to be done: configuration, inventory, status. No torch here."""
