"""What the stages share: samples, views, encoders, the feature cache, planning and storage."""
