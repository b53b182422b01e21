"""Where blobs lie: the map of packs, their contents, the packer and the trees of volumes. They can be made again."""
