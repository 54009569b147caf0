"""Planning: numbers in, a frozen plan out. Nothing here touches a device, or imports anything but oclbn.errors."""
