"""What a device is, can do and says. Pure: nothing here waits, or asks anyone."""
