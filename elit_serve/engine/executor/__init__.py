"""Steps of pictures on one device."""
