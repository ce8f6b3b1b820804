"""What the stages share: samples, views, encoders, the feature cache, planning and storage."""

if __name__ == "pipeline":
    raise ImportError("This folder is part of unic-pipe: import it as unic_pipe.pipeline.")
