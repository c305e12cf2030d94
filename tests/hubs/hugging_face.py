"""The part of Hugging Face's protocol that `huggingface_hub` uses to read a repository."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from hubs.server import Handler, LoopbackHub, Repository, Request, sha256

LARGE = 1 << 20  # bytes; as with git-lfs, a larger file comes from another host


class HuggingFaceHub(LoopbackHub):
    """`HF_ENDPOINT` leads here. Large files are redirected to `localhost`, as to a CDN."""

    def answer(self, handler: Handler, request: Request) -> None:
        stored = re.fullmatch(r"/cdn/(models?|datasets?)/([^/]+/[^/]+)/(.+)", request.path)
        if stored:
            kind, name, path = stored.groups()
            return self.send_file(handler, path, self.repositories[kind, name].files[path])
        asked = re.fullmatch(
            r"/api/(?P<kinds>models|datasets)/(?P<name>[^/]+/[^/]+?)"
            r"(?:/(?P<what>revision)/(?P<revision>[^/]+)|/(?P<refs>refs))?",
            request.path,
        ) or re.fullmatch(
            r"/(?P<kinds>datasets/)?(?P<name>[^/]+/[^/]+)/(?P<what>resolve)"
            r"/(?P<revision>[^/]+)/(?P<path>.+)",
            request.path,
        )
        if asked is None:
            return handler.send_json({}, 404)
        found = asked.groupdict()
        kind = "dataset" if (found["kinds"] or "").startswith("datasets") else "model"
        repository = self.repositories.get((kind, found["name"]))
        refusal = self._refusal(repository, request)
        if repository is None or refusal:
            return refuse(handler, *refusal)
        if found.get("refs"):
            branches = [{"name": n, "ref": n, "targetCommit": "0"} for n in repository.revisions]
            return handler.send_json({"branches": branches, "converts": [], "tags": []})
        revision = found["revision"]
        if revision not in (None, repository.commit, *repository.revisions):
            return refuse(handler, 404, "RevisionNotFound")
        if found["what"] == "resolve":
            return self._resolve(handler, repository, kind, found["name"], found["path"])
        siblings = [self._sibling(path, content) for path, content in repository.files.items()]
        return handler.send_json(
            {"id": found["name"], "sha": repository.commit, "siblings": siblings, "tags": []}
        )

    def _refusal(self, repository: Repository | None, request: Request) -> tuple[int, str] | tuple:
        if repository is None:
            return 401, "RepoNotFound"  # the hub tells strangers no more
        if repository.refuses == 403:
            return 403, "GatedRepo"
        if repository.refuses:
            return repository.refuses, "RepoNotFound" if repository.refuses in (401, 404) else ""
        if (
            repository.token
            and request.headers.get("authorization") != f"Bearer {repository.token}"
        ):
            return 401, "RepoNotFound"
        return ()

    def _resolve(
        self, handler: Handler, repository: Repository, kind: str, name: str, path: str
    ) -> None:
        content = repository.files.get(path)
        if content is None or path in self.faults.lacking:
            return refuse(handler, 404, "EntryNotFound", X_Repo_Commit=repository.commit)
        if len(content) < LARGE:
            etag = f'"{blob_id(content)}"'
            return self.send_file(
                handler, path, content, ETag=etag, X_Repo_Commit=repository.commit
            )
        headers = {
            "Location": f"http://localhost:{self.port}/cdn/{kind}/{name}/{path}",
            "X_Linked_Etag": f'"{sha256(content)}"',
            "X_Linked_Size": str(self.size(path, content)),
            "X_Repo_Commit": repository.commit,
        }
        return handler.send_json({}, 302, **headers)

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.size(path, content)
        sibling = {"rfilename": path, "size": size, "blobId": blob_id(content)}
        if len(content) >= LARGE:
            sibling["lfs"] = {"sha256": sha256(content), "size": size, "pointerSize": 1}
        return sibling


@lru_cache(maxsize=64)
def blob_id(content: bytes) -> str:
    """As `git hash-object` has it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refuse(handler: Handler, status: int, code: str, **headers: str) -> None:
    handler.send_json({"error": code}, status, X_Error_Code=code, X_Error_Message=code, **headers)
