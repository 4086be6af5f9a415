"""The priors that ship with the package: weights, model cards and the configurations they were trained from."""
