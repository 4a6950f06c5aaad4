"""Folders as the libraries that own their formats wrote them, packed: streaming 0.13.0 and litdata 0.2.76.

`mds`: MDSWriter, columns `text` (`document N é`) and `ids` (ndarray:uint16, N to 2 N + 4), seven samples. `lit_tok`:
optimize for the TokensLoader, ids 10 N to 11 N + 4, in four chunks. `lit_dict`: dictionaries of `text`, `n` and `ids`
(0 to N). `lit_txt`: the texts alone.
"""

from __future__ import annotations

import base64
import io
import lzma
import tarfile
from pathlib import Path

_PACKED = """
/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4E//BMldADaZCskhBJSzSsi80f5CS2Je1+T3bEA/RaIud12ZCx14qwArqVivRRsCz8UNqCdDbnBqZzgnCqb4
QMjr6YY5rK4UHcDeDHhP3RaBAN28USI7PPFugVIONaSswrXOanwLUK1yueaPMyL+2b6buNfUeQDT8YhAnPePKMN9ttZfjzDeWzJ8JZRGukRFUYW6uPVw
0b9Bzx/YVYdXqO9mE3mRZNm6JSlecoKZ2Pst0UDwEa61oV/I2+DQsCz8xgT12vlXxIhCn9q4mBNJKiomhFe8DeplEDcIVqpTHsAr2bjgXiaZw5gz+aZg
pVBHaGqmtI29HDYQ5FiWtCu4FrYUlxBf1+sBi+Y1Tqy/nJHoHCpvMclofeFNY2kZ8CeJHqXUzLeOGNh7Am/5h4oV237druXkCYt9sp9xUzefj3OsJ/3t
QxfA9R58Ghg7NLBUbDrmi2feGdn4bNEX0cKvBnwFA8bZBGBSfJsf7TNb+a5acRtX/zjdeurYo1rcKQRtqthv0YtiATe/WOdmKBedILrAvWW5jei3ROOU
KeaYFDVSqwLJqYngWVbTDlGnnfkuAv68iH7BbMUS6ig88PQZG7QJE4TnxoLIITx81ukrGVb9TITpnbUwHjYnJQCyFmufu3vhwGs0BZ84NhR8k7nXdJzr
Y7tF0X70fj8+khZcXWyzfq3ZO6kJpdSO9kyA+MaXJ0eTZzwoGZ9n2g7Mw6hUic5sAWXeicf3r+J9/1s16wIzLIskEoCabbHWkcveqWOjKGpmMKASSLXA
849kc7vE4lqaOC+rC2vcsAyj4sa1NhZnwRj3c0QvOIfYqQo/lRprP1A1V5+RTPV2j0ZXhC8gNI5ckipX9C/bFD5PFpqqhq+vKRFkyOJemLGpD8mN6V8M
WMuzMNQiK/j/px2rWuOZ744F2CK2oxgyookPKnh5emjejd7vmDbDSJFsnwzQdY+6XZ3F2on3kzYKAc07nABye2k+hsWTcUWXWS98h/p/k5LFkjHbONHf
YVLS3+BKjLIfWkVcbf+AYpNalmGOqc6+7K9psgPDcDABGVRenEV2p6o+GNECZkNcnoIYoNCtuudxfo3UMkdxjxyJAsuwVr2Vk5/peO+ux1iXWWjqygBi
rprt2N+oTY4NJcPIXKdoAgHtEV4aNGuh45io8evyE1pUPwcfHd08NurQC13fC325BZfH6c8UsNrkn9JvQnJBZ11czAtCsaFn4kcdnwHx8I81fbalTgaM
KFg1fYCXpD7DQeZlCPSo5n9YufanFcKHuFGjySTcMlnWdqPIVKrnlkGLI5tP2mXACStUOCn16ltco2r+g45jW4WNLJKmru82ds5712/aIRpeqOL8tAjV
rH7C18hG+b0urHXJ5O8qYH2lXjyw+eZ02zPMVwP5rXlbyxMrr0zCut40IwAyaL3jNkjNWNy9h/q+hFqhUJq0K9SzIxjJkAUJCMHABjqimHehQdzr1n2U
4Nq5b3eJdn8ZQe+RQ3IQsweKY8wu30JvBq0dQ+rTg7KgLGrKcX7m963TyVJ5UIkGku77wOQr8SsOo+MwOs+uZEJ+OjORj4vVOcTMOyzyKHupeNlkbIvX
h1JEcDYPUo5YUDKml7Oxa9/6xNZwdkVYt02VhBcSM42zbmFlZAAAAAAAtewvkXMCNfoAAeUJgKABAIfm9qWxxGf7AgAAAAAEWVo=
"""


def unpack_chunked(folder: Path) -> Path:
    """Write the folders into a folder."""
    content = lzma.decompress(base64.b64decode(_PACKED))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None:
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / member.name).write_bytes(stream.read())
    return folder
