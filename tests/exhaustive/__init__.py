"""Every interleaving of a few creates on a small quota, walked one by one."""
