"""The loop that images, video and audio share: configuration, training, checkpoints, reports."""
