"""What the GPU check measures: encoders beside their peers and their floor, and row kernels beside the copy rate."""
