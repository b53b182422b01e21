"""A store on any remote that the user's rclone knows."""
