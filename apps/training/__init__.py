"""Training of the small latent diffusion model that ships with the project; started by `manifold train-demo`."""
