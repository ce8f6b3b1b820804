"""The stages. Each one reads data on disk and writes data on disk; none imports another."""

if __name__ == "stages":
    raise ImportError("This folder is part of unic-pipe: import it as unic_pipe.stages.")
