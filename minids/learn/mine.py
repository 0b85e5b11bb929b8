def keep(name, attempt):
    pass
