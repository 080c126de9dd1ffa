return { PRIORITY = 1440, VERSION = "9" }
