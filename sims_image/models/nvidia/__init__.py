"""NVIDIA's published EDM and EDM2 snapshots."""
