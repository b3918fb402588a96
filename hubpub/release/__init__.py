"""The release: cells that were made become repos that are published, by one way from a laptop and from a job."""
