setup:
	.venv/bin/python -m pip --version
