"""What the pages of the explorer share: choices that the link carries, cached reads, pictures, charts, exports."""
