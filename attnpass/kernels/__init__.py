"""One kernel library is one file here, read top to bottom; `registry` holds them."""
