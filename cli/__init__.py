"""What a person types: parse, delegate, show."""

if __name__ == "cli":
    raise ImportError("This folder is part of unic-pipe: import it as unic_pipe.cli.")
