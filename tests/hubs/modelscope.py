"""The part of ModelScope's protocol that `modelscope_hub` uses to read a repository."""

from __future__ import annotations

import re
from typing import Any

from hubs.server import Handler, LoopbackHub, Request, sha256


class ModelScopeHub(LoopbackHub):
    """`MODELSCOPE_ENDPOINT` leads here."""

    default_revision = "master"

    def answer(self, handler: Handler, request: Request) -> None:
        asked = re.fullmatch(
            r"/api/v1/(models|datasets)/([^/]+/[^/]+)/(repo/files|repo/tree|repo|revisions)",
            request.path,
        )
        if asked is None:
            return refuse(handler, 404)
        kinds, name, what = asked.groups()
        repository = self.repositories.get((kinds[:-1], name))
        if repository is None:
            return refuse(handler, 404)
        opened = repository.token in (None, _bearer(request))
        if repository.refuses or not opened:
            return refuse(handler, repository.refuses or 401)
        if what == "revisions":
            branches = [{"Revision": revision} for revision in repository.revisions]
            return reply(handler, {"RevisionMap": {"Branches": branches, "Tags": []}})
        if request.query.get("Revision") not in repository.revisions:
            return refuse(handler, 404)
        if what != "repo":
            page = int(request.query.get("PageNumber", 1)) - 1
            length = int(request.query.get("PageSize", len(repository.files) or 1))
            files = list(repository.files.items())[page * length : (page + 1) * length]
            return reply(handler, {"Files": [self._entry(*file) for file in files]})
        path = request.query["FilePath"]
        content = repository.files.get(path)
        if content is None or path in self.faults.lacking:
            return refuse(handler, 404)
        return self.send_file(handler, path, content)

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {
            "Path": path,
            "Name": path.rpartition("/")[2],
            "Size": self.size(path, content),
            "Sha256": sha256(content),
            "Type": "blob",
        }


def _bearer(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def reply(handler: Handler, data: Any) -> None:
    handler.send_json({"Code": 200, "Success": True, "Data": data})


def refuse(handler: Handler, status: int) -> None:
    handler.send_json({"Code": status, "Success": False, "Message": "refused"}, status)
