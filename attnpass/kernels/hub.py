PREFIX = "hub:"


class Hub:
    def __init__(self, n):
        raise NotImplementedError
