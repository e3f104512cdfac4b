"""Train the encoders on the current labels, and re-assign the labels on schedule."""
