"""A multipart body as it comes, piece by piece: its parts are pictures, kept in memory alone."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from convnext.serve.limits import Held, Refused
from convnext.serve.uploads import Upload


class Parts:
    """The parts of a body. One without a file name is a picture without a name.

    Args:
        boundary: between the parts.
        held: what the request holds; each part counts as a file.

    Raises:
        Refused: 400, there is no boundary, or none that could be one.
    """

    def __init__(self, boundary: bytes, held: Held) -> None:
        self.held, self.found, self.ended = held, list[Upload](), False
        self.headers: dict[bytes, bytes] = {}
        self.header, self.value, self.data = bytearray(), bytearray(), bytearray()
        if not boundary:
            raise Refused(400, "the content type has no boundary")
        try:
            self.parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self.begin,
                    "on_header_field": lambda data, start, end: self.header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
                    "on_header_end": self.end_header,
                    "on_part_data": lambda data, start, end: self.data.extend(memoryview(data)[start:end]),
                    "on_part_end": self.end,
                    "on_end": self.finish,
                },
            )
        except FormParserError as error:
            raise malformed(error) from error

    def begin(self) -> None:
        """A part begins."""
        self.held.add_file()
        self.headers = {}

    def end_header(self) -> None:
        """A part's header is there."""
        self.headers[bytes(self.header).lower()] = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def end(self) -> None:
        """A part is there."""
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        name = options.get(b"filename")
        self.found.append(Upload(None if name is None else name.decode(errors="replace"), bytes(self.data)))
        self.data = bytearray()

    def finish(self) -> None:
        """The last part is there."""
        self.ended = True

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            Refused: 400, it is no multipart body; 422 or 429, it has too many parts.
        """
        try:
            self.parser.write(piece)
        except FormParserError as error:
            raise malformed(error) from error

    def uploads(self) -> list[Upload]:
        """The pictures, once all pieces have come.

        Raises:
            Refused: 400, the body is cut off; 422, it has no parts.
        """
        if not self.ended:
            raise Refused(400, "the body is malformed: it ends before its last part does")
        if not self.found:
            raise Refused(422, "no files: send one or more")
        return self.found


def malformed(error: FormParserError) -> Refused:
    """The refusal of what is no multipart body."""
    return Refused(400, f"the body is malformed: {str(error)[:200]}")
