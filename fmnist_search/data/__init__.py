"""The images: found or downloaded, verified, split and on their device."""
