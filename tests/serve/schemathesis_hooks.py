"""What Schemathesis sends where the document asks for image files: such files, whole and damaged ones."""

import base64

import schemathesis
from hypothesis import strategies as st

from tests.serve.conftest import COLOURS, picture

PICTURES = [picture(colour, kind=kind) for colour in COLOURS for kind in ("png", "jpeg", "webp")]

schemathesis.openapi.format("binary", st.sampled_from(PICTURES))
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(data).decode() for data in PICTURES]))
