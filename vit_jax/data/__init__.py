"""From records on disk to batches on devices; nothing here knows a model."""
