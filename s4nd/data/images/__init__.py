"""Images: their files, named sets, batches from memory and from files."""
