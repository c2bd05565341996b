def write(folder, summary): pass
