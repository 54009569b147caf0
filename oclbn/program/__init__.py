"""From kernel text to kernels that are ready to be enqueued."""
