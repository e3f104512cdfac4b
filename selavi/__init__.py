"""SeLaVi: cluster labels for unlabelled videos from their pictures and their sound."""

__version__ = "0.1.0"
