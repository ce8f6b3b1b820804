"""The typed documents: configuration and everything that is written to disk."""

if __name__ == "schemas":
    raise ImportError("This folder is part of unic-pipe: import it as unic_pipe.schemas.")
