"""For FastAPI, which is a Starlette application.

app = FastAPI()
instrument(app)
"""

from taba.frameworks.starlette import instrument, route

__all__ = ["instrument", "route"]
