"""What a trained network looks at and what is inside it: maps over pictures, receptive fields, kernels, activity."""
