version = ""
