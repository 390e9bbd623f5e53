"""One file per kind of job: straight-line code from ticket to repository, or back."""
